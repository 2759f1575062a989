"""Runs plans with torch operations alone, on the CPU and any other torch device."""
