"""Formats of products, a module each; `known` chooses among them."""
