"""Made-up people: the names that the demo world draws its users from."""

FIRST_NAMES = (
    "Adaeze", "Aino", "Amara", "Anouk", "Anselm", "Arjun", "Astrid", "Aurelio", "Aylin", "Bao",
    "Beatriz", "Benedikt", "Bianca", "Bram", "Brigid", "Callum", "Camille", "Carmen", "Cedric",
    "Chiara", "Cosima", "Dagny", "Daria", "Davide", "Deniz", "Dmitri", "Eamon", "Edda",
    "Eleni", "Elif", "Emeka", "Enzo", "Esme", "Fabian", "Farah", "Felix", "Fenna", "Finn",
    "Freya", "Gaspard", "Giulia", "Greta", "Hana", "Haruki", "Hedda", "Henrik", "Idris",
    "Ilse", "Imani", "Ingrid", "Isidro", "Ivo", "Jana", "Jasper", "Jelena", "Joao", "Jonas",
    "Joost", "Kaia", "Kenji", "Kirsi", "Klara", "Kofi", "Lale", "Lars", "Leila", "Leonie",
    "Liam", "Linnea", "Lorenzo", "Lucia", "Lukas", "Mads", "Maeve", "Magda", "Malik", "Marek",
    "Mariam", "Matteo", "Mei", "Mila", "Mirela", "Naledi", "Naoko", "Nadia", "Nils", "Noor",
    "Nuria", "Oisin", "Olga", "Omar", "Oskar", "Paloma", "Paulina", "Pavel", "Petra", "Piotr",
    "Priya", "Quentin", "Rafael", "Rania", "Renske", "Rosalind", "Ruben", "Sabine", "Samir",
    "Sanna", "Saoirse", "Selma", "Silas", "Sofie", "Soren", "Svea", "Tamsin", "Tariq",
    "Thandi", "Theo", "Tilda", "Tomas", "Ulrike", "Valentin", "Vera", "Viktor", "Wanda",
    "Willem", "Xenia", "Yara", "Yusuf", "Zofia",
)  # fmt: skip

LAST_NAMES = (
    "Abara", "Aaltonen", "Achterberg", "Almeida", "Andersen", "Ardelean", "Baptiste", "Barros",
    "Bergstrom", "Bianchi", "Blackwood", "Bouchard", "Brannigan", "Castellan", "Cerny",
    "Chandran", "Costa", "Dalgaard", "Delacroix", "Demir", "Dimitrov", "Drummond", "Eklund",
    "Engel", "Escobar", "Faulkner", "Fiorelli", "Fontaine", "Forsberg", "Gallagher", "Ganesan",
    "Grimaldi", "Haddad", "Halvorsen", "Hartmann", "Hayashi", "Hoekstra", "Holm", "Horvath",
    "Ibarra", "Iversen", "Jansson", "Jokinen", "Kaplan", "Karlsson", "Kessler", "Kimura",
    "Kowalczyk", "Kruger", "Lachance", "Larsen", "Lefevre", "Lindqvist", "Lombardi", "Macleod",
    "Madaki", "Marchetti", "Mensah", "Moreau", "Nakagawa", "Navarro", "Nguyen", "Nwosu",
    "Nyberg", "Okafor", "Oliveira", "Osei", "Pacheco", "Papadakis", "Pellegrino", "Petrov",
    "Quintero", "Rahimi", "Rasmussen", "Reyes", "Rinaldi", "Rousseau", "Saarinen", "Santoro",
    "Sato", "Schuster", "Serrano", "Silva", "Sorensen", "Stavros", "Sundberg", "Takeda",
    "Thorne", "Tremblay", "Uribe", "Vandenberg", "Varga", "Vasquez", "Verhoeven", "Virtanen",
    "Wachter", "Weatherby", "Wierzbicki", "Yildiz", "Zeller",
)  # fmt: skip
