"""What a lab's sweep lists."""
