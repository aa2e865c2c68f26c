"""What is measured, one file per scenario; each exports ``SCENARIO``."""
