"""Calibration: pictures drawn from drafts at several strengths, measured, and the best way to draw chosen."""
