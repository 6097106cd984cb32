"""What to look at after step 5: a report in HTML, and the pointing score."""
