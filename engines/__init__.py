"""What the work is: engines, the documents they read and write, and the audio they hear."""
