"""A small sample corpus with questions, written for this project.

The passages and questions state facts only, in the authors' own words, and
are part of this package under its Apache-2.0 licence.
"""
