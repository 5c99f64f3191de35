"""Labelled data in, decisions out: accuracy and cost of every variant, eta, quantisation ranges."""
