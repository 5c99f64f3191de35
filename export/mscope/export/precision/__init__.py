"""Strongly typed fp16 and bf16 graphs, derived from the canonical fp32 graph. docs/precision.md has the rules.

`rules` says what computes in which type, `typed` writes the graph, `proof` checks a written one, `derive` adds both
stages to a bundle, `ranges` measures how far the values are from overflow, `emulate` lets the CPU run bfloat16.
"""
