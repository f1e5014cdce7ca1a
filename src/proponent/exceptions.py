"""The exceptions of the library: each message says what was wrong and what to do."""


class ProponentError(Exception):
    """Base of every exception that the library raises on purpose."""


class InvalidInputError(ProponentError, ValueError):
    """An argument that cannot be used; the message names it and says what would be accepted."""


class NonFiniteError(ProponentError, ArithmeticError):
    """A risk, a gradient or a score is not finite; the message names the instances."""


class RunError(ProponentError, ValueError):
    """A recorded run is missing, damaged, or belongs to another module or data set."""


class NotFittedError(ProponentError, ValueError, AttributeError):
    """A method was asked before ``fit``."""


class MethodCapabilityError(ProponentError, TypeError):
    """A method was asked for something it does not have; the message says which methods do."""


class SolveError(ProponentError, ArithmeticError):
    """A linear system of the curvature was not solved; the message says why and what to try."""
