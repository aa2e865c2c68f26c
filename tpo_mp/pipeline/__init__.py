"""The compiled chain a call is folded through, and the mechanics of waiting."""
