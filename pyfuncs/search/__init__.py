"""Files that searches map into memory, and each backend's view of them."""
