"""Figures beside the programs people use now, measured in one run. How to install those: benchmarks/README.md."""
