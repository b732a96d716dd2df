"""Quality of one generated image, in [0,1]."""
