"""Verifiers of responses: see `rewards.verdict.Verifier`. They never raise for what a model wrote."""
