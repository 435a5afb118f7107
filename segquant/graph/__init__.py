"""SegLinear's question (arXiv 2507.14811): where does the static graph cut a layer?"""
