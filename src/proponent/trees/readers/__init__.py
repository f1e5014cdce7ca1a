"""One reader for each library: from a trained ensemble to what a leaf view holds."""
