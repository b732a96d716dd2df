"""Where the recall vectors of the training images live."""
