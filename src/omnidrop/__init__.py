"""omnidrop"""
