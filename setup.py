"""Packages of the wheel. pyproject.toml has all other metadata, but cannot name found and mapped packages together."""

from setuptools import find_packages, setup

# Folders of the repository that a wheel holds inside of the package (see entropy_grpo/config/shipped.py).
SHIPPED = ("recipes", "accelerate_configs")

setup(
    packages=[*find_packages(include=["entropy_grpo*"]), *(f"entropy_grpo.{folder}" for folder in SHIPPED)],
    package_dir={f"entropy_grpo.{folder}": folder for folder in SHIPPED},
)
