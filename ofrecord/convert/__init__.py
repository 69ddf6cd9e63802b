"""What the converter, img2ofrecord.py, needs besides its lesson."""
