"""Samplers: vLLM in this process, vLLM over HTTP, and scripted replay."""
