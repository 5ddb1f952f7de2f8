"""Pretrained models from hub, folder, GGUF file or Python package, whoever uses them: a student, or a teacher on this machine."""
