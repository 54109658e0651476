"""Tables of what people call countries, places and labels."""

from alembic import op

from pgearth.migrations.sqlfiles import run_sql

revision = "0021"
down_revision = "0020"

# ISO 3166-1 (as pycountry 26.2 has it), and Kosovo, which has the code for users XK, as in NUTS. Code, alpha-3 code and
# English name, then what else it is called: officially, in common speech, by itself in countries of NUTS, and in NUTS.
COUNTRIES = """
AD AND Andorra | Principality of Andorra
AE ARE United Arab Emirates | UAE
AF AFG Afghanistan | Islamic Republic of Afghanistan
AG ATG Antigua and Barbuda | Antigua
AI AIA Anguilla
AL ALB Albania | Republic of Albania | Shqipëria | Shqipëri
AM ARM Armenia | Republic of Armenia | Hayastan
AO AGO Angola | Republic of Angola
AQ ATA Antarctica
AR ARG Argentina | Argentine Republic
AS ASM American Samoa
AT AUT Austria | Republic of Austria | Österreich | Oesterreich
AU AUS Australia
AW ABW Aruba
AX ALA Åland Islands | Åland
AZ AZE Azerbaijan | Republic of Azerbaijan | Azərbaycan | Azerbaycan
BA BIH Bosnia and Herzegovina | Republic of Bosnia and Herzegovina | Bosnia | Bosnia-Herzegovina | Bosna i Hercegovina
BB BRB Barbados
BD BGD Bangladesh | People's Republic of Bangladesh
BE BEL Belgium | Kingdom of Belgium | Belgique | België | Belgien
BF BFA Burkina Faso
BG BGR Bulgaria | Republic of Bulgaria | Bulgariya | България
BH BHR Bahrain | Kingdom of Bahrain
BI BDI Burundi | Republic of Burundi
BJ BEN Benin | Republic of Benin
BL BLM Saint Barthélemy | Saint Barth | St. Barts
BM BMU Bermuda
BN BRN Brunei | Brunei Darussalam
BO BOL Bolivia | Bolivia, Plurinational State of | Plurinational State of Bolivia
BQ BES Bonaire, Sint Eustatius and Saba | Bonaire | Caribbean Netherlands
BR BRA Brazil | Federative Republic of Brazil | Brasil
BS BHS Bahamas | Commonwealth of the Bahamas | The Bahamas
BT BTN Bhutan | Kingdom of Bhutan
BV BVT Bouvet Island
BW BWA Botswana | Republic of Botswana
BY BLR Belarus | Republic of Belarus | Беларусь | Byelorussia
BZ BLZ Belize
CA CAN Canada
CC CCK Cocos Islands | Cocos (Keeling) Islands
CD COD Democratic Republic of the Congo | Congo, The Democratic Republic of the | DR Congo | DRC | Congo-Kinshasa | Congo, Democratic Republic of the
CF CAF Central African Republic | CAR
CG COG Republic of the Congo | Congo | Congo-Brazzaville
CH CHE Switzerland | Swiss Confederation | Schweiz | Suisse | Svizzera | Svizra | Confoederatio Helvetica
CI CIV Côte d'Ivoire | Republic of Côte d'Ivoire | Ivory Coast
CK COK Cook Islands
CL CHL Chile | Republic of Chile
CM CMR Cameroon | Republic of Cameroon
CN CHN China | People's Republic of China | PRC | Mainland China
CO COL Colombia | Republic of Colombia
CR CRI Costa Rica | Republic of Costa Rica
CU CUB Cuba | Republic of Cuba
CV CPV Cabo Verde | Republic of Cabo Verde | Cape Verde
CW CUW Curaçao
CX CXR Christmas Island
CY CYP Cyprus | Republic of Cyprus | Kýpros | Κύπρος | Kibris
CZ CZE Czechia | Czech Republic | Česko | Česká republika
DE DEU Germany | Federal Republic of Germany | Deutschland | Bundesrepublik Deutschland
DJ DJI Djibouti | Republic of Djibouti
DK DNK Denmark | Kingdom of Denmark | Danmark
DM DMA Dominica | Commonwealth of Dominica
DO DOM Dominican Republic
DZ DZA Algeria | People's Democratic Republic of Algeria | Algérie
EC ECU Ecuador | Republic of Ecuador
EE EST Estonia | Republic of Estonia | Eesti
EG EGY Egypt | Arab Republic of Egypt
EH ESH Western Sahara | Sahrawi
ER ERI Eritrea | State of Eritrea
ES ESP Spain | Kingdom of Spain | España
ET ETH Ethiopia | Federal Democratic Republic of Ethiopia
FI FIN Finland | Republic of Finland | Suomi
FJ FJI Fiji | Republic of Fiji
FK FLK Falkland Islands | Falkland Islands (Malvinas) | Malvinas | Islas Malvinas
FM FSM Micronesia | Micronesia, Federated States of | Federated States of Micronesia
FO FRO Faroe Islands | Føroyar | Faroes | Faeroe Islands
FR FRA France | French Republic | République française
GA GAB Gabon | Gabonese Republic
GB GBR United Kingdom | United Kingdom of Great Britain and Northern Ireland | UK | Great Britain | Britain
GD GRD Grenada
GE GEO Georgia | Sakartvelo | საქართველო
GF GUF French Guiana | Guyane française
GG GGY Guernsey
GH GHA Ghana | Republic of Ghana
GI GIB Gibraltar
GL GRL Greenland | Kalaallit Nunaat | Grønland
GM GMB Gambia | Republic of the Gambia | The Gambia
GN GIN Guinea | Republic of Guinea
GP GLP Guadeloupe
GQ GNQ Equatorial Guinea | Republic of Equatorial Guinea
GR GRC Greece | Hellenic Republic | EL | Elláda | Ελλάδα | Hellas
GS SGS South Georgia and the South Sandwich Islands
GT GTM Guatemala | Republic of Guatemala
GU GUM Guam
GW GNB Guinea-Bissau | Republic of Guinea-Bissau
GY GUY Guyana | Republic of Guyana
HK HKG Hong Kong | Hong Kong Special Administrative Region of China | Hongkong
HM HMD Heard Island and McDonald Islands | Heard and McDonald Islands
HN HND Honduras | Republic of Honduras
HR HRV Croatia | Republic of Croatia | Hrvatska
HT HTI Haiti | Republic of Haiti
HU HUN Hungary | Magyarország
ID IDN Indonesia | Republic of Indonesia
IE IRL Ireland | Éire | Republic of Ireland
IL ISR Israel | State of Israel
IM IMN Isle of Man
IN IND India | Republic of India | Bharat
IO IOT British Indian Ocean Territory
IQ IRQ Iraq | Republic of Iraq
IR IRN Iran | Iran, Islamic Republic of | Islamic Republic of Iran
IS ISL Iceland | Republic of Iceland | Ísland
IT ITA Italy | Italian Republic | Italia
JE JEY Jersey
JM JAM Jamaica
JO JOR Jordan | Hashemite Kingdom of Jordan
JP JPN Japan | Nippon | Nihon
KE KEN Kenya | Republic of Kenya
KG KGZ Kyrgyzstan | Kyrgyz Republic
KH KHM Cambodia | Kingdom of Cambodia | Kampuchea
KI KIR Kiribati | Republic of Kiribati
KM COM Comoros | Union of the Comoros
KN KNA Saint Kitts and Nevis | Saint Kitts | St. Kitts and Nevis
KP PRK North Korea | Korea, Democratic People's Republic of | Democratic People's Republic of Korea | DPRK
KR KOR South Korea | Korea, Republic of | Republic of Korea
KW KWT Kuwait | State of Kuwait
KY CYM Cayman Islands
KZ KAZ Kazakhstan | Republic of Kazakhstan
LA LAO Laos | Lao People's Democratic Republic
LB LBN Lebanon | Lebanese Republic
LC LCA Saint Lucia | St. Lucia
LI LIE Liechtenstein | Principality of Liechtenstein | Fürstentum Liechtenstein
LK LKA Sri Lanka | Democratic Socialist Republic of Sri Lanka
LR LBR Liberia | Republic of Liberia
LS LSO Lesotho | Kingdom of Lesotho
LT LTU Lithuania | Republic of Lithuania | Lietuva
LU LUX Luxembourg | Grand Duchy of Luxembourg | Luxemburg | Lëtzebuerg
LV LVA Latvia | Republic of Latvia | Latvija
LY LBY Libya
MA MAR Morocco | Kingdom of Morocco | Maroc
MC MCO Monaco | Principality of Monaco
MD MDA Moldova | Moldova, Republic of | Republic of Moldova | Republica Moldova
ME MNE Montenegro | Crna Gora | Црна Гора
MF MAF Saint Martin | Saint Martin (French part)
MG MDG Madagascar | Republic of Madagascar
MH MHL Marshall Islands | Republic of the Marshall Islands
MK MKD North Macedonia | Republic of North Macedonia | Severna Makedonija | Северна Македонија | Makedonija | Macedonia | FYROM
ML MLI Mali | Republic of Mali
MM MMR Myanmar | Republic of Myanmar | Burma
MN MNG Mongolia
MO MAC Macao | Macao Special Administrative Region of China | Macau
MP MNP Northern Mariana Islands | Commonwealth of the Northern Mariana Islands
MQ MTQ Martinique
MR MRT Mauritania | Islamic Republic of Mauritania
MS MSR Montserrat
MT MLT Malta | Republic of Malta
MU MUS Mauritius | Republic of Mauritius
MV MDV Maldives | Republic of Maldives
MW MWI Malawi | Republic of Malawi
MX MEX Mexico | United Mexican States | México
MY MYS Malaysia
MZ MOZ Mozambique | Republic of Mozambique
NA NAM Namibia | Republic of Namibia
NC NCL New Caledonia | Nouvelle-Calédonie
NE NER Niger | Republic of the Niger
NF NFK Norfolk Island
NG NGA Nigeria | Federal Republic of Nigeria
NI NIC Nicaragua | Republic of Nicaragua
NL NLD Netherlands | Kingdom of the Netherlands | Holland | Nederland | The Netherlands
NO NOR Norway | Kingdom of Norway | Norge | Noreg
NP NPL Nepal | Federal Democratic Republic of Nepal
NR NRU Nauru | Republic of Nauru
NU NIU Niue
NZ NZL New Zealand | Aotearoa
OM OMN Oman | Sultanate of Oman
PA PAN Panama | Republic of Panama
PE PER Peru | Republic of Peru
PF PYF French Polynesia | Polynésie française
PG PNG Papua New Guinea | Independent State of Papua New Guinea
PH PHL Philippines | Republic of the Philippines | The Philippines
PK PAK Pakistan | Islamic Republic of Pakistan
PL POL Poland | Republic of Poland | Polska
PM SPM Saint Pierre and Miquelon | St. Pierre and Miquelon
PN PCN Pitcairn | Pitcairn Islands
PR PRI Puerto Rico
PS PSE Palestine | Palestine, State of | State of Palestine | Palestinian Territories
PT PRT Portugal | Portuguese Republic | República Portuguesa
PW PLW Palau | Republic of Palau
PY PRY Paraguay | Republic of Paraguay
QA QAT Qatar | State of Qatar
RE REU Réunion | La Réunion
RO ROU Romania | România | Rumania
RS SRB Serbia | Republic of Serbia | Srbija | Србија
RU RUS Russia | Russian Federation | Rossiya | Россия
RW RWA Rwanda | Rwandese Republic
SA SAU Saudi Arabia | Kingdom of Saudi Arabia
SB SLB Solomon Islands
SC SYC Seychelles | Republic of Seychelles
SD SDN Sudan | Republic of the Sudan
SE SWE Sweden | Kingdom of Sweden | Sverige
SG SGP Singapore | Republic of Singapore
SH SHN Saint Helena, Ascension and Tristan da Cunha | Saint Helena | St. Helena
SI SVN Slovenia | Republic of Slovenia | Slovenija
SJ SJM Svalbard and Jan Mayen | Svalbard
SK SVK Slovakia | Slovak Republic | Slovensko
SL SLE Sierra Leone | Republic of Sierra Leone
SM SMR San Marino | Republic of San Marino
SN SEN Senegal | Republic of Senegal
SO SOM Somalia | Federal Republic of Somalia
SR SUR Suriname | Republic of Suriname | Surinam
SS SSD South Sudan | Republic of South Sudan
ST STP Sao Tome and Principe | Democratic Republic of Sao Tome and Principe | São Tomé and Príncipe | São Tomé
SV SLV El Salvador | Republic of El Salvador
SX SXM Sint Maarten | Sint Maarten (Dutch part)
SY SYR Syria | Syrian Arab Republic
SZ SWZ Eswatini | Kingdom of Eswatini | Swaziland
TC TCA Turks and Caicos Islands
TD TCD Chad | Republic of Chad
TF ATF French Southern Territories | French Southern and Antarctic Lands
TG TGO Togo | Togolese Republic
TH THA Thailand | Kingdom of Thailand
TJ TJK Tajikistan | Republic of Tajikistan
TK TKL Tokelau
TL TLS Timor-Leste | Democratic Republic of Timor-Leste | East Timor
TM TKM Turkmenistan
TN TUN Tunisia | Republic of Tunisia | Tunisie
TO TON Tonga | Kingdom of Tonga
TR TUR Türkiye | Republic of Türkiye | Turkey | Republic of Turkey
TT TTO Trinidad and Tobago | Republic of Trinidad and Tobago | Trinidad
TV TUV Tuvalu
TW TWN Taiwan | Taiwan, Province of China
TZ TZA Tanzania | Tanzania, United Republic of | United Republic of Tanzania
UA UKR Ukraine | Ukraina | Україна | The Ukraine
UG UGA Uganda | Republic of Uganda
UM UMI United States Minor Outlying Islands | US Minor Outlying Islands
US USA United States | United States of America | U.S. | U.S.A. | The United States
UY URY Uruguay | Eastern Republic of Uruguay
UZ UZB Uzbekistan | Republic of Uzbekistan
VA VAT Vatican City | Holy See (Vatican City State) | Vatican | Holy See | The Vatican
VC VCT Saint Vincent and the Grenadines | Saint Vincent | St. Vincent and the Grenadines
VE VEN Venezuela | Venezuela, Bolivarian Republic of | Bolivarian Republic of Venezuela
VG VGB British Virgin Islands | Virgin Islands, British
VI VIR United States Virgin Islands | Virgin Islands, U.S. | Virgin Islands of the United States | US Virgin Islands
VN VNM Vietnam | Viet Nam | Socialist Republic of Viet Nam
VU VUT Vanuatu | Republic of Vanuatu
WF WLF Wallis and Futuna
WS WSM Samoa | Independent State of Samoa | Western Samoa
XK XKX Kosovo | Republic of Kosovo | Kosova | Kosovë | Косово
YE YEM Yemen | Republic of Yemen
YT MYT Mayotte
ZA ZAF South Africa | Republic of South Africa
ZM ZMB Zambia | Republic of Zambia
ZW ZWE Zimbabwe | Republic of Zimbabwe
"""

# English names of NUTS regions where they differ: not of their ids, which change from edition to edition.
PLACES = """
Bavaria = Bayern
Upper Bavaria = Oberbayern
Lower Bavaria = Niederbayern
Upper Palatinate = Oberpfalz
Upper Franconia = Oberfranken
Middle Franconia = Mittelfranken
Lower Franconia = Unterfranken
Swabia = Schwaben
Hesse = Hessen
Lower Saxony = Niedersachsen
Saxony = Sachsen
Saxony-Anhalt = Sachsen-Anhalt
Thuringia = Thüringen
North Rhine-Westphalia = Nordrhein-Westfalen
Rhineland-Palatinate = Rheinland-Pfalz
Mecklenburg-Western Pomerania = Mecklenburg-Vorpommern
Cologne = Köln
Hanover = Hannover
Brunswick = Braunschweig
Munich = München, Kreisfreie Stadt
Nuremberg = Nürnberg, Kreisfreie Stadt
Eastern Austria = Ostösterreich
Southern Austria = Südösterreich
Western Austria = Westösterreich
Lower Austria = Niederösterreich
Upper Austria = Oberösterreich
Vienna = Wien
Carinthia = Kärnten
Styria = Steiermark
Tyrol = Tirol
Brussels = Région de Bruxelles-Capitale
Brussels-Capital Region = Région de Bruxelles-Capitale
Flanders = Vlaams Gewest
Flemish Region = Vlaams Gewest
Wallonia = Région wallonne
Walloon Region = Région wallonne
Antwerp = Prov. Antwerpen
East Flanders = Prov. Oost-Vlaanderen
West Flanders = Prov. West-Vlaanderen
Flemish Brabant = Prov. Vlaams-Brabant
Walloon Brabant = Prov. Brabant Wallon
Liege = Prov. Liège
Zurich = Zürich
Geneva = Genève
Lucerne = Luzern
Grisons = Graubünden
Central Switzerland = Zentralschweiz
Eastern Switzerland = Ostschweiz
Prague = Praha
Central Bohemia = Střední Čechy
Central Moravia = Střední Morava
Moravia-Silesia = Moravskoslezsko
Zealand = Sjælland
Capital Region of Denmark = Hovedstaden
Southern Denmark = Syddanmark
Central Denmark = Midtjylland
North Denmark = Nordjylland
Copenhagen = Byen København
Attica = Attiki
Crete = Kriti
North Aegean = Voreio Aigaio
South Aegean = Notio Aigaio
Eastern Macedonia and Thrace = Anatoliki Makedonia, Thraki
Central Macedonia = Kentriki Makedonia
Western Macedonia = Dytiki Makedonia
Epirus = Ipeiros
Thessaly = Thessalia
Ionian Islands = Ionia Nisia
Western Greece = Dytiki Elláda
Central Greece = Sterea Elláda
Peloponnese = Peloponnisos
Catalonia = Cataluña
Andalusia = Andalucía
Aragon = Aragón
Asturias = Principado de Asturias
Basque Country = País Vasco
Navarre = Comunidad Foral de Navarra
Madrid = Comunidad de Madrid
Community of Madrid = Comunidad de Madrid
Castile and León = Castilla y León
Castile-La Mancha = Castilla-La Mancha
Valencian Community = Comunitat Valenciana
Balearic Islands = Illes Balears
Murcia = Región de Murcia
Ceuta = Ciudad de Ceuta
Melilla = Ciudad de Melilla
Canary Islands = Canarias
Seville = Sevilla
Majorca = Mallorca
Minorca = Menorca
Lapland = Lappi
Uusimaa = Helsinki-Uusimaa
Western Finland = Länsi-Suomi
Southern Finland = Etelä-Suomi
Northern and Eastern Finland = Pohjois- ja Itä-Suomi
Mainland Finland = Manner-Suomi
Central Finland = Keski-Suomi
North Karelia = Pohjois-Karjala
South Karelia = Etelä-Karjala
Åland Islands = Åland
Brittany = Bretagne
Burgundy = Bourgogne
Normandy = Normandie
Lower Normandy = Basse-Normandie
Upper Normandy = Haute-Normandie
Picardy = Picardie
Corsica = Corse
Savoy = Savoie
Upper Savoy = Haute-Savoie
French Guiana = Guyane
Réunion = La Réunion
Centre-Loire Valley = Centre — Val de Loire
Zagreb = Grad Zagreb
Adriatic Croatia = Jadranska Hrvatska
Pannonian Croatia = Panonska Hrvatska
Northern Croatia = Sjeverna Hrvatska
Central Hungary = Közép-Magyarország
Transdanubia = Dunántúl
Central Transdanubia = Közép-Dunántúl
Western Transdanubia = Nyugat-Dunántúl
Southern Transdanubia = Dél-Dunántúl
Northern Hungary = Észak-Magyarország
Northern Great Plain = Észak-Alföld
Southern Great Plain = Dél-Alföld
Piedmont = Piemonte
Aosta Valley = Valle d'Aosta
Lombardy = Lombardia
Apulia = Puglia
Sicily = Sicilia
Sardinia = Sardegna
South Tyrol = Provincia Autonoma di Bolzano
Trentino = Provincia Autonoma di Trento
Friuli Venezia Giulia = Friuli-Venezia Giulia
Tuscany = Toscana
The Marches = Marche
Latium = Lazio
Rome = Roma
Milan = Milano
Florence = Firenze
Venice = Venezia
Naples = Napoli
Turin = Torino
Genoa = Genova
Vilnius County = Vilniaus apskritis
Kaunas County = Kauno apskritis
Klaipėda County = Klaipėdos apskritis
Northern Netherlands = Noord-Nederland
Eastern Netherlands = Oost-Nederland
Western Netherlands = West-Nederland
Southern Netherlands = Zuid-Nederland
North Holland = Noord-Holland
South Holland = Zuid-Holland
North Brabant = Noord-Brabant
Frisia = Friesland (NL)
Northern Norway = Nord-Norge
Western Norway = Vestlandet
Lesser Poland = Małopolskie
Greater Poland = Wielkopolskie
Silesia = Śląskie
Lower Silesia = Dolnośląskie
Opole = Opolskie
West Pomerania = Zachodniopomorskie
Pomerania = Pomorskie
Lubusz = Lubuskie
Kuyavia-Pomerania = Kujawsko-pomorskie
Warmia-Masuria = Warmińsko-mazurskie
Holy Cross = Świętokrzyskie
Subcarpathia = Podkarpackie
Podlachia = Podlaskie
Masovia = Makroregion województwo mazowieckie
Warsaw = Miasto Warszawa
Azores = Região Autónoma dos Açores
Madeira = Região Autónoma da Madeira
Lisbon = Área Metropolitana de Lisboa
Bucharest = Bucureşti
Belgrade = City of Belgrade
Vojvodina = Autonomous Province of Vojvodina
Scania = Skåne län
Stockholm County = Stockholms län
Gotland = Gotlands län
Bratislava Region = Bratislavský kraj
Western Slovakia = Západné Slovensko
Central Slovakia = Stredné Slovensko
Eastern Slovakia = Východné Slovensko
Eastern Slovenia = Vzhodna Slovenija
Western Slovenia = Zahodna Slovenija
Sofia = Sofia (stolitsa)
Aegean = Ege
Mediterranean = Akdeniz
Central Anatolia = Orta Anadolu
"""


def upgrade() -> None:
    connection = op.get_bind()
    run_sql(
        connection,
        """
        create table eo.country (
            code text primary key check (code ~ '^[A-Z]{2}$'),
            alpha3 text not null unique check (alpha3 ~ '^[A-Z]{3}$'),
            name text not null unique
        );
        comment on table eo.country is 'Countries of ISO 3166-1, and Kosovo';
        comment on column eo.country.code is 'Alpha-2 code, as in eo.patch.country_codes';
        comment on column eo.country.alpha3 is 'Alpha-3 code';
        comment on column eo.country.name is 'Common English name';

        create table eo.country_name (
            name text primary key,
            code text not null references eo.country on delete cascade
        );
        comment on table eo.country_name is 'Other names of countries that filters understand: official, former and local ones, and NUTS''s codes EL and UK';
        comment on column eo.country_name.name is 'Name, found in any case and without its accents, too';
        comment on column eo.country_name.code is 'Country it means';

        create table eo.place_name (
            english_name text,
            name text,
            primary key (english_name, name)
        );
        comment on table eo.place_name is 'English names of NUTS regions, where they differ from the local ones';
        comment on column eo.place_name.english_name is 'English name, such as Bavaria';
        comment on column eo.place_name.name is 'Name in eo.nuts, or one of several names in it that a slash separates, such as Bayern';

        create table eo.label_synonym (
            scheme text not null,
            synonym text not null,
            label_id smallint not null references eo.label on delete cascade,
            primary key (synonym, label_id)
        );
        comment on table eo.label_synonym is 'Words that people type for labels, such as lake: understood in searches, but not names that data sets give their classes';
        comment on column eo.label_synonym.scheme is 'Nomenclature of the label';
        comment on column eo.label_synonym.synonym is 'Word, in small letters';
        comment on column eo.label_synonym.label_id is 'A label it means, of several perhaps';
        """,
    )
    countries = [line.split(" | ") for line in COUNTRIES.strip().splitlines()]
    connection.exec_driver_sql(
        "insert into eo.country (code, alpha3, name) values (%s, %s, %s)",
        [tuple(country.split(" ", 2)) for country, *_ in countries],
    )
    connection.exec_driver_sql(
        "insert into eo.country_name (name, code) values (%s, %s)",
        [(name, country[:2]) for country, *names in countries for name in names],
    )
    connection.exec_driver_sql(
        "insert into eo.place_name (english_name, name) values (%s, %s)",
        [tuple(line.split(" = ")) for line in PLACES.strip().splitlines()],
    )


def downgrade() -> None:
    run_sql(
        op.get_bind(),
        """
        drop table eo.label_synonym, eo.place_name, eo.country_name, eo.country;
        delete from eo_internal.sql_file;
        """,
    )
