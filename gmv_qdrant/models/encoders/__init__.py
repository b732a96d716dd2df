"""Networks and other functions that turn an image into one vector."""
