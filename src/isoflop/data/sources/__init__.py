"""Storage formats and generated data, one module each."""
