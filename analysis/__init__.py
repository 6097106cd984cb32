"""What to look at after step 5: a report in HTML, pointing score, deletion test."""
