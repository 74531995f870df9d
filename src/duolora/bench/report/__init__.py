"""What people style at: the report of finished runs, and the questionnaire of a user study."""
