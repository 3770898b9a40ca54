"""Labels beside gold labels and beside cheaper ways to labels. Nothing that searches imports this."""
