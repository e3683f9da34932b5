"""What columns are called in logs that people have: names without case and punctuation, the
likeliest first."""

from __future__ import annotations

import re

# of common exports: phone logs, web analytics, shops, banks, git, in English and German mostly
NAMES = {
    "user": "user userid uid userpseudoid distinctid domainuserid anonymousid networkuserid "
    "amplitudeid customerid customer custid clientid client visitorid fullvisitorid visitor "
    "idvisitor visitorkey visid postvisidhigh memberid member accountid account accountnumber "
    "accountno iban cardid cardnumber personid person participantid participant athleteid athlete "
    "subjectid subscriberid playerid studentid patientid driverid buyerid shopperid profileid "
    "deviceid device cookieid cookie username login email authoremail author kundennummer "
    "kundennr kundenid kundeid kunde nutzerid nutzer benutzerid benutzer kontonummer konto "
    "auftragskonto remotehost host remoteaddr remoteip clientip ipaddress ip sessionid session who",
    "time": "timestamp time datetime eventtime eventtimestamp eventdatetime timestampms "
    "collectortstamp derivedtstamp dvcecreatedtstamp occurredat originaltimestamp sentat "
    "receivedat createdat created starttime startdatetime start startdatelocal startdate begin "
    "begintime startedat checkintime checkinat checkin visittime logtime timelocal localtime "
    "servertime utctime utctimestamp unixtime unixtimestamp epoch ts tstamp transactiontime "
    "transactiondatetime transactiondate bookingdate postingdate valuedate orderdate orderedat "
    "purchasedate purchasetime purchasetimestamp invoicedate authordate commitdate committedat "
    "eventdate dateutc date day zeitstempel zeitpunkt datumuhrzeit bestelldatum buchungstag "
    "buchungsdatum datum fecha when",
    "event": "eventname event appname packagename eventtype eventid item itemid itemname "
    "productid product productname productcategory lineitem lineitemname lineitemsku sku "
    "stockcode appid app application applicationname package articleid article songid song "
    "trackid track trackname traname artistid artist artistname artname movieid movie videoid "
    "video contentid venuecategory venuecategoryname eventaction action activity activitytype "
    "pageid page pagename screenname screen url pageurl pagepath requesturi request path uri "
    "endpoint title categoryname category personalfinancecategoryprimary personalfinancecategory "
    "merchantcategory mcc merchant merchantname payee transactiontype artikelnummer artikelnr "
    "artikel produkt ereignis aktion kategorie buchungstext command operation file filename "
    "filepath description message subject method type what",
    "location": "location locationid loc cellid cell basestation baseid stationid station placeid "
    "place venueid venue poi poiid storeid store shopid shop branchid branch cityid city "
    "merchantcity geocity region geocountry country geohash filiale ort stadt land area where",
    "behavior": "behavior behaviour behaviorid behaviortype",
}
# of a column that holds the time of day alone, beside one with the date
CLOCKS = "time hour timeofday hourofday clock starttime eventtime uhrzeit zeit stunde heure hora"
# A part of a name that tells its role where no column has one of the names above.
PARTS = {
    "user": (
        "user customer client visitor account member person subscriber player device card kunde "
        "nutzer konto"
    ),
    "time": "time timestamp tstamp date datetime ts datum zeit",
    "event": "event item product action activity app page article category artikel produkt",
}


def plain_name(column: str) -> str:
    """A column's name in lower case without punctuation."""
    return re.sub(r"[^a-z0-9]", "", column.lower())


def name_rank(column: str, names: str) -> int | None:
    """Position of a column's name among `names`, or of its last part (`properties.distinct_id`);
    None if unknown."""
    known = names.split()
    # the whole name first, then what follows its last dot
    for name in (plain_name(column), plain_name(column.rpartition(".")[2])):
        if name in known:
            return known.index(name)
    return None


def name_parts(column: str) -> set[str]:
    """The words of `sourceUser_name`: source, user, name."""
    # camel case, too
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", column)
    return set(re.split(r"[\s_-]+", spaced.lower())) - {""}
