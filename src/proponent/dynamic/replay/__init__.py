"""Recorded training runs, replayed step by step: what the unrolled methods stand on."""

from proponent.dynamic.replay.moment import Moment as Moment
from proponent.dynamic.replay.replay import Replay as Replay
