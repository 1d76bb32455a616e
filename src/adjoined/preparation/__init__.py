"""What is done to a trained network before it is cut, or instead of training, on calibration data."""
