"""Values of mathematical answers: parses an answer's text into a value, and compares two values.

Parsing, in the order that a text flows through:

1. `parser.py` calls the other modules. Its function `parse_value` returns one of the types in `values.py`.
2. `latex_normalization.py` writes LaTeX, Unicode and Markdown in one notation. `latex_unicode.py` has the characters.
3. `numerals.py` writes numbers in digits, and parses bases, ratios and times.
4. `latex_tokens.py` splits LaTeX into tokens, and tokens at separators outside of brackets.
5. `relations.py` parses sides with `=`, `<` and other signs between them.
6. `quantities.py` parses a formula with its unit. `units.py` reads the words, `sympy_formulas.py` the formula.

Comparison, by `comparison.same_value`: `formula_comparison.py` compares numbers and formulas, `set_comparison.py` sets
of real numbers. Both evaluate SymPy expressions, which `sympy_formulas.py` makes by math-verify's parser.

`vocabulary.py` has the LaTeX commands, words and units that these modules know.
"""
