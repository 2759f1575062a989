"""The cost model: what covers and dense attention should take, and for which machines."""
