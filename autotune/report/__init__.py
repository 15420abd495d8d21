"""A result as one HTML page: facts, the charts drawn of them, and the page around those."""
