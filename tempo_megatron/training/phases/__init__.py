"""The phases of an iteration, one function each: generate, calibrate (E-step), refine (M-step), evaluate."""
