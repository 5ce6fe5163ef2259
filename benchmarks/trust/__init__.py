"""Figures about trust, with one command: plans cross-checked, faults, bad input, fuzzing, planted bugs."""
