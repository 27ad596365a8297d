"""What cheating earns: simulations, their results as small JSON files, and the page made of them."""
