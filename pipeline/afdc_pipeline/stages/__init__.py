"""One module a stage of the loop: each reads committed rows, does its work in chunks and commits them."""
