"""Is it true? Criteria, statistics, calibration."""
