"""Crashes and damage: killed processes, lost power, full disks, broken files. Each check can fail, and is shown to."""
