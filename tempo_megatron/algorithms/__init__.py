"""The mathematics of TEMPO: tensors in, tensors out. Imports torch alone."""
