"""Verifiers: functions (response, reference answer) -> Verdict that never raise for what a model wrote."""
