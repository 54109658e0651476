"""Hash functions: vectors of an encoder to binary codes. Each module is one; `projection` is what they share."""
