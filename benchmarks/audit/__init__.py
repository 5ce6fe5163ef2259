"""Attacks measured: membership over many runs, reconstruction with pictures, another library under audit."""
