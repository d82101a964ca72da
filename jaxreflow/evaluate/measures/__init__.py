"""One module for each measure of a comparison: records, and the function that fills them."""
