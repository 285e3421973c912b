//! What stands on the screen, drawn into a buffer and compared line by line.
