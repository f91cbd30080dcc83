"""The fault campaign: what goes wrong on a robot is done on purpose, and an independent recorder judges.

`python -m mbrl_bringup.ros.faults --quick` runs it, `--only NAME` a part; docs/safety.md says what must hold.
"""
