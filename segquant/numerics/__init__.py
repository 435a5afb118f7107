"""What a number is: formats, their arithmetic, rotations, and the layout of a quantized layer."""
