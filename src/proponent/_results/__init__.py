"""What results are made of: checks, selection, files and views behind ``influence`` and ``top``."""
