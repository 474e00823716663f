"""Tests of checkpoints written as ONNX."""
