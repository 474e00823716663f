"""Whether two ways to run a network agree: texts to try them with, and how close they must be.

Knows no runtime: the torch backend tries its passes at load by it, and the export its graphs.
"""
