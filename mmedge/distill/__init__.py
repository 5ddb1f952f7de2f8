"""Distillation: from annotations to a student, in two stages (self-evaluation, then reasoning)."""
